"""What a run is, without a parser: for the command line and the lessons."""
