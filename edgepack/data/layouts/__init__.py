"""Layouts of data sets of pictures: class folders, `labels.csv`, COCO and YOLO.

`find.open_layout` recognises a layout and returns a `PictureSet`; no picture is decoded here.
"""
