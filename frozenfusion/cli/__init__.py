"""The command line: flags from the configs, messages in its words, exit statuses."""
