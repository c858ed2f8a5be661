"""What building, testing and publishing need, and the program does not."""
