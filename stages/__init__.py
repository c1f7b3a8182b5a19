"""The science: one module or package a stage, arrays in and arrays out. Knows no broker, store or worker."""
