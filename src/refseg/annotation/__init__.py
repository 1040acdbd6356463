"""Where masks are made and kept: COCO files, Label Studio, supervision, FiftyOne; docs/annotation.md shows each."""
