"""The live page: routes, stream and the built assets."""
