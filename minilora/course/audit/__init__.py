"""Is a published number right? And what became of the course's claims?

What it replaces: trust, and a footnote.
How it works: `numbers` compares a number as it is printed with one that is computed, and says
whether it reproduces; `claims` lists the claims of the course and reads their verdicts from the
lessons that ran them. Lesson 15 stands on both.
What it leaves out: where a number comes from. The lesson that audits it computes it, and names
paper and table.
Where numerics differ: nowhere; a verdict compares decimals exactly.
"""
