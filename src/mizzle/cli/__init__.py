"""The command `mizzle`: one command a file."""
