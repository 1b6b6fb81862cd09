"""The methods that come with benchbd: one module each, found through the same door as everyone's."""
