"""Data, models and the recipe that `finetune.py` and the study share."""
