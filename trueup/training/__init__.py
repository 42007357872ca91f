"""Code that the training stages share around TRL's trainers: arguments, adapters, batches, the loop, pairs as tokens.
`trial` builds all of it without memory, so that a mistake shows before anything is trained.
"""
