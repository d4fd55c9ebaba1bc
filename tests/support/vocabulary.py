"""Words of the texts that tests make up."""

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY += "a the film plot cast is was very not good bad fine dull".split()
