"""Text encoders: BERT, RoBERTa, MPNet, DistilBERT, ModernBERT and their like."""
