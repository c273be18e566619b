"""Who calls, and what they may do: keys, tokens and the files that they are checked against."""
