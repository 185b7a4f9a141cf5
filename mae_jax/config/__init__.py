"""What a config says: fields -> models, data, lengths; config files and config.json.

The one place, beside the tasks' own, where field names are read. May import `training` and
everything below it. Start with `model.py`.
"""
