"""The corpus on disk. Start with `corpus.py`.

`manifest.py` describes its files, `shards.py` reads and writes token files, `tokenizer.py` trains
and loads tokenizers, and `model_folder.py` finds pre-trained models.
"""
