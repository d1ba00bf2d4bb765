"""Every green Jenkins build becomes a trained, measured, traceable MLflow model on a leased EC2 instance."""
