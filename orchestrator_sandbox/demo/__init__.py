"""The demo: commits to the sample project, and shows how a trained model comes of it."""
