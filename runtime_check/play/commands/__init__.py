"""The commands of ``atari-play``, one module each, whose ``command`` is a `click.Command`."""
