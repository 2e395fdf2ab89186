"""Does an ensemble beat its best member, by how much, and at what cost."""
