"""What does monitoring cost? Each figure is taken in one run beside its peer, interleaved."""
