"""Run the command `prefrec` as `python -m prefrec`."""

from prefrec.cli import main

if __name__ == "__main__":
    main()
