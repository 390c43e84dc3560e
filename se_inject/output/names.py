"""Names of the files in an output folder."""

TENSORS, PLAN, MODELING = "model.safetensors", "plan.json", "modeling.py"
REPORT, MARKDOWN, HTML = "report.json", "report.md", "report.html"

FORMATS = {  # name of a format -> its file in `formats`
    "safetensors": "whole",
    "adapter": "adapter",
    "pt2": "program",
    "onnx": "onnxfile",
    "timm": "timmfolder",
}
