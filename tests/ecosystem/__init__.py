"""What other libraries do with an injected model: one row of `docs/ecosystem.md` is one test."""
