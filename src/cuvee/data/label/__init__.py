"""Sort raw documents into domains before a corpus is built. Start with `labels.py`.

`labelers.py` has the labellers that need only the document: folder, role, column, map, random.
`topics.py` clusters documents, `classifier.py` uses a trained model. `writing.py` writes labelled
documents, and `report.py` summarizes them in labels.json.
"""
