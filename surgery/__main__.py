"""`python -m surgery`, which launchers of several processes start: `accelerate launch --module surgery train ...`."""

from surgery.cli import main

if __name__ == "__main__":
    main()
