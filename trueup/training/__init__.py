"""What training stages share around TRL's trainers: arguments, adapters, batches, the loop, and pairs as tokens.
`trial` builds all of it without memory, so that a mistake is found before anything is trained.
"""
