"""Runs a config: `python main.py --config=configs/quickstart.py [--config.field=value]`.

This is `mae-jax train` (mae_jax/cli/train.py) for a checkout that is not installed.
"""

import sys

from mae_jax.__main__ import main

if __name__ == '__main__':
    main(['train', *sys.argv[1:]], 'main.py')
