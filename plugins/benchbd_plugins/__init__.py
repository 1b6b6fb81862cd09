"""The methods of benchbd: one module each, registered through the same entry points as everyone's."""
