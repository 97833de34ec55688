"""What is cut: budgets, allocation and the plan that follows."""
