"""What both sides of the program need of the machine: files, signals, child processes. Standard library only."""
