"""How loops become machine code that is kept on disk, and what compiled code may do."""
