"""Data, classifiers and the recipe that `finetune.py` and the study share."""
