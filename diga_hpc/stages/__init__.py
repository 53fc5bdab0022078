"""The method, one file a stage; pipeline.py is their order."""
