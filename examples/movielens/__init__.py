"""MovieLens 100k, end to end: the example that `make demo` runs.

`data.py` fetches the ratings and turns a user's moment in time into a request (raw features, no TensorFlow);
`model.py` is a Keras ranker on them; `train.py` trains it and exports a SavedModel; `demo.py` converts, compiles, serves and
compares with TensorFlow.
"""
