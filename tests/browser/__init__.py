"""Does a person see on the page what they should, in a real browser?"""
