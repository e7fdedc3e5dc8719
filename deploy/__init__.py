"""What is needed around the gateway to run it: the engine's environment, the quick start, the containers."""
