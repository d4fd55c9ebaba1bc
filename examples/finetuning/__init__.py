"""What `finetune.py` and the study share: data, classifiers and one recipe."""
