"""All other operators, a file for each kind of step."""
