"""The command ``atari-play``: one file in ``commands`` for each of its commands."""
