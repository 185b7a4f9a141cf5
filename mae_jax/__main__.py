"""Makes `python -m mae_jax <command>` the same as `mae-jax <command>`."""

from mae_jax.cli.main import main

if __name__ == '__main__':
    main()
