"""Look at recent pictures: do they differ from what the model was taught?"""
