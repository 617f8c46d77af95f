"""What `launcher prepare` does: data sets as image folders, packed shards, checks and pictures of the images."""
