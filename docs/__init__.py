"""The pages of the documentation, and what fills them and draws their pictures."""
