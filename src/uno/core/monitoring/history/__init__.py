"""What is remembered: the recent past of every series, behind one small protocol."""
