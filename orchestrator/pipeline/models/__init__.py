"""From trained model to the model in use: checks, and the champion among the registered versions."""
