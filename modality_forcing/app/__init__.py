"""The web page of a checkpoint (`mforce app`), the only part that imports Gradio."""
