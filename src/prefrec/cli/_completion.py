"""The verb `--install-completion`, in a module of its own because cyclopts takes 10 ms to import what it needs."""

from cyclopts.completion.install import create_install_completion_command

from prefrec.cli import command_line

install_completion = create_install_completion_command(command_line().install_completion, add_to_startup=True)
