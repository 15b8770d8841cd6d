"""Reports of experiments: statistics over seeds, tables, figures, and a page that holds them.

- `statistics`: mean and spread, paired differences with their confidence interval;
- `tables`: tables as Markdown, CSV and JSON;
- `figures`: curves, heat maps, embeddings and bars, by Matplotlib (the extra `plots`);
- `page`: a report as one HTML page without external parts, with Markdown and numbers beside it;
- `retrieval`: what a retrieval looks like, in numbers and as sections of a report;
- `literature`: figures quoted from the literature, not measured here.

Nothing here knows how the numbers came to be: no module of training is imported.
"""
