"""MovieLens 100k: a small but complete ranker, from public data to a TensorFlow SavedModel.

`data.fetch` unpacks the ratings, `data.load` reads them into numpy, `data.split` cuts them by time.
`train` (the entry point, `python -m examples.movielens.train`) turns them into batches, fits `model.Ranker`
and writes a SavedModel whose signature takes raw features: one user and N candidate movies per request.
`data.requests` and `data.labelled_requests` build those same raw features for clients; they need only numpy.
"""
