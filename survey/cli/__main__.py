"""`python -m survey.cli`: the same command where no script is installed."""

from survey.cli import main

main(prog_name="survey")
