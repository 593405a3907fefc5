"""World models as ONNX files: `python -m diamond_gym.export_onnx game=Breakout out=breakout_onnx`.

A folder of a few files is a whole game for any program that runs ONNX, such as a web page; `docs/onnx.md`
describes its format. `graphs` turns networks into ONNX, and `export` writes the folder.
"""
