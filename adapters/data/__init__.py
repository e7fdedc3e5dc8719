"""Training data: reads the files people have, and the two small sets the quick start trains its adapters on."""
